"""The C++ extension behind the CPU kernels: compiled when it is first needed, kept in a cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from variational_rnn.kernels.common import is_plain

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = ("rnn.cpp", "softmax.cpp")
FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}
REMEDY = (
    "the reference is used, which takes two to three times as long (needed are an x86 processor with AVX2, "
    "a C++ compiler, c++ or what CXX names, and a folder to write to, ~/.cache or XDG_CACHE_HOME)"
)
FP32, BF16 = 0, 1  # precision of the factors of products


@functools.cache
def extension() -> ctypes.CDLL | None:
    """The compiled extension, or None where it cannot be built; why is logged once.

    It is compiled for the instructions that torch finds at run time and kept in ~/.cache/variational_rnn (or below
    XDG_CACHE_HOME). Its name is made of hashes of its sources, command and content, so machines can share the folder
    and a damaged file is built again. The compiler is `c++`, or what CXX names.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if capability not in FLAGS or shutil.which(compiler[0]) is None:
        missing = (
            f"there is no compiler {compiler[0]}"
            if capability in FLAGS
            else f"they do not know the processor ({capability})"
        )
        log.warning("variational_rnn: no fast CPU kernels, since %s; %s", missing, REMEDY)
        return None
    flags = FLAGS[capability]
    try:
        for bf16 in _bf16_flags() if capability == "AVX512" else []:
            try:
                return ctypes.CDLL(str(_built(compiler, [*flags, *bf16])))
            except subprocess.CalledProcessError:  # an older compiler, as likely as not
                log.info("variational_rnn: %s does not know %s, which is not used", compiler[0], " ".join(bf16))
        return ctypes.CDLL(str(_built(compiler, flags)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: there is no home folder
        is_silent = isinstance(error, subprocess.CalledProcessError) and not error.stderr
        reason = f"{compiler[0]} failed" if is_silent else (getattr(error, "stderr", "") or str(error)).strip()
        reason = reason.splitlines()[0]
        log.warning("variational_rnn: no fast CPU kernels, since they cannot be built (%s); %s", reason, REMEDY)
        return None


def _bf16_flags() -> list[list[str]]:
    """Compiler flags for the bf16 products that this processor has, the fastest first."""

    def torch_says(name: str) -> bool:
        return bool(getattr(torch.cpu, name, lambda: False)())

    found: list[list[str]] = []
    if torch_says("_is_avx512_bf16_supported"):
        found.append(["-mavx512bf16"])
        if torch_says("_init_amx"):  # which asks the system for permission to use them
            found.insert(0, ["-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DHAS_TILES=1"])
    return found


def _built(compiler: list[str], flags: list[str]) -> Path:
    options = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
    command = [*compiler, *options, *flags, *(str(FOLDER / name) for name in SOURCES)]
    texts = [file.read_bytes() for file in sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")))]
    key = hashlib.sha256(b"".join(texts) + " ".join(command).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "variational_rnn"
    for file in folder.glob(f"cpu-{key}-*.so"):
        if file.stem.endswith(_sha256(file)):
            return file
        file.unlink(missing_ok=True)  # it is damaged, and loading it could end the process
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        built = Path(unfinished) / "cpu.so"
        subprocess.run([*command, "-o", str(built)], check=True, capture_output=True, text=True)
        return built.replace(folder / f"cpu-{key}-{_sha256(built)}.so")  # atomic: another process may build it too


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def why_unsupported(x: Tensor, *others: Tensor | None) -> str | None:
    """Why the extension cannot compute on these tensors, or None if it can.

    Args:
        x: the input, which may be bfloat16 under autocast.
        others: parameters, state and masks, or None where there is none.
    """
    given = [tensor for tensor in others if tensor is not None]
    if any(tensor.device.type != "cpu" for tensor in (x, *given)):
        return "it computes on the CPU"
    autocast = torch.is_autocast_enabled("cpu")
    if any(tensor.dtype != torch.float32 for tensor in given):
        return "it keeps parameters, state and masks in float32"
    if x.dtype != torch.float32 and not (autocast and x.dtype == torch.bfloat16):
        return f"it reads float32, and under autocast bfloat16, not {x.dtype}"
    if not is_plain(x, *given):
        return "the call is traced, or a tensor is not plain memory"
    if autocast and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return f"it has no products of {torch.get_autocast_dtype('cpu')}"
    if extension() is None:
        return "it could not be built"
    return None


def loaded() -> ctypes.CDLL:
    """The extension, for callers that know from `why_unsupported` that it is there."""
    library = extension()
    assert library is not None
    return library


def precision() -> int:
    """FP32, or BF16 under bfloat16 autocast where the processor has such products."""
    return BF16 if torch.is_autocast_enabled("cpu") and loaded().vrnn_has_bf16() else FP32


def in_memory(tensor: Tensor | None) -> Tensor | None:
    """The tensor as C++ can read it: contiguous, with its sign applied."""
    return None if tensor is None else tensor.contiguous().resolve_neg()
