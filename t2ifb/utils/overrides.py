"""Command-line arguments in the form that users type."""

import shlex


def argument(key: str, value: object) -> str:
    """`key=value` for Hydra. Values outside its grammar, such as paths with `=` or brackets, are quoted."""
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
    """`argument`, quoted for a shell where necessary."""
    return shlex.quote(argument(key, value))
