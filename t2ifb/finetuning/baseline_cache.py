"""Cache of the base model's evaluation samples, shared by runs with equal settings, such as a sweep."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import t2ifb
from t2ifb.diffusion.model import TextToImageModel
from t2ifb.finetuning.evaluator import REWARD, EvalSamples, Evaluator, evaluate, in_process_group
from t2ifb.scorers.mix import Mix
from t2ifb.utils.devices import device_facts
from t2ifb.utils.files import file_lock, make_folder
from t2ifb.utils.fingerprints import library_versions


class BaselineCache:
    """Cache keyed by everything that the samples depend on. Jobs that need the same entry wait for the first."""

    def __init__(self, folder: str | Path | None, depends_on: Mapping[str, Any]) -> None:
        """Store the settings.

        Args:
            folder: Folder of the cache; None disables it.
            depends_on: Arguments of the run that the base model's samples depend on, besides prompts and seed.
        """
        self.folder = None if folder is None else Path(folder).expanduser()
        self.known = None if folder is None else fingerprint(depends_on)

    def of(self, evaluator: Evaluator, model: TextToImageModel, samples_per_batch: int) -> EvalSamples:
        """The base model's samples, computed if not cached. All processes of a run must call this together."""
        if self.folder is None:
            return evaluate(evaluator, model, samples_per_batch, "the base model", base=True)
        path = make_folder(self.folder) / f"{self._key(evaluator, model)}.safetensors"
        if in_process_group():  # all processes sample, so none may wait for another here
            known = [path.exists()]
            dist.broadcast_object_list(known)
            if not known[0]:
                answers = evaluate(evaluator, model, samples_per_batch, "the base model", base=True)
                if dist.get_rank() == 0:
                    answers.save(path)
                return answers
            found = [EvalSamples.read(path) if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(found)
            assert found[0] is not None
            return found[0]
        with file_lock(path.with_suffix(".lock")):
            if not path.exists():
                evaluate(evaluator, model, samples_per_batch, "the base model", base=True).save(path)
            return EvalSamples.read(path)

    def _key(self, evaluator: Evaluator, model: TextToImageModel) -> str:
        reward = dict(evaluator.judges.scorers.items()).get(REWARD)
        asked = {
            "stream": evaluator.stream,
            "seed": evaluator.seed,
            "prompts": evaluator.prompts,
            "sampler": [evaluator.sampler.num_inference_steps, evaluator.sampler.guidance_scale],
            "settings": self.known,
            "unit": [reward.means.tolist(), reward.deviations.tolist()] if isinstance(reward, Mix) else None,
            "code": package_hash(),
            "libraries": library_versions(),
            "device": device_facts(model.device),
            "precision": str(model.denoiser.dtype),
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:20]


@cache
def package_hash() -> str:
    """Hash of all code in this package, so that results of other code are not reused."""
    files = sorted(Path(t2ifb.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def fingerprint(value: Any) -> Any:
    """Describe an argument by plain containers that are equal in two processes where the argument is.

    A network is described by its class, weights and plain attributes, and those of its submodules. Named files and
    folders are described by their paths, times and sizes; for a run folder only its export counts.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return _stamped(str(value))
    if isinstance(value, Mapping):
        return {str(key): fingerprint(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(item) for item in value]
    if isinstance(value, partial):
        return [_name(value.func), fingerprint(value.args), fingerprint(value.keywords)]
    if isinstance(value, type):
        return _name(value)
    if callable(own := getattr(value, "fingerprint", None)):
        return own()
    if isinstance(value, nn.Module):
        attributes = {name: _attributes(part) for name, part in value.named_modules()}
        return [_name(value), _weights_hash(value), attributes]
    if is_dataclass(value):
        return [_name(value), {each.name: fingerprint(getattr(value, each.name)) for each in fields(value)}]
    return _name(value)


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _attributes(module: nn.Module) -> list[Any]:
    """The class of a network and what it was made with, as far as that is plain."""
    plain = (bool, int, float, str, Path, list, tuple, dict)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return [_name(module), {name: fingerprint(v) for name, v in own.items() if is_dataclass(v) or isinstance(v, plain)}]


def _weights_hash(module: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, also of those that a checkpoint does not have."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stamped(value: str) -> Any:
    """A text; where it names a file or a folder, with times and sizes."""
    path = Path(value.removeprefix("local-dir:")).expanduser()
    try:
        exported = path / "export"
        inside = sorted((exported if exported.is_dir() else path).rglob("*")) if value and path.is_dir() else [path]
        files = [(str(file.relative_to(path)), file.stat()) for file in inside if file.is_file()]
        return [value, [(name, status.st_mtime_ns, status.st_size) for name, status in files]]
    except (OSError, ValueError):  # path too long, or a null byte
        return value
