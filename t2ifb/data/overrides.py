"""Arguments of the commands in the form in which they can be typed."""

import shlex


def argument(key: str, value: object) -> str:
    """`key=value` as Hydra reads it: a value outside its grammar, such as a path with `=` or brackets, is quoted."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    text = str(value)
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
        if "${" not in text and not parsed.is_sweep_override() and parsed.value() == text:
            return f"{key}={text}"
    except HydraException:
        pass
    quoted = QuotedString(text.replace("${", "\\${"), Quote.double).with_quotes()
    return f"{key}={quoted}"


def typed(key: str, value: object) -> str:
    """`argument`, quoted for a shell where that is necessary."""
    return shlex.quote(argument(key, value))
