"""The door that all pass who run a model: what cannot generate is refused before it is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from specgen.core.config import EngineConfig
from specgen.core.engine import Engine
from specgen.core.errors import ModelError
from specgen.core.knowledge.profile import fingerprint
from specgen.core.llama.backend import LlamaModel
from specgen.core.llama.library import knows_architecture
from specgen.core.models.modelinfo import read_model
from tests.conftest import TinyModel
from tests.support.command import generate, record_of, run, text_of
from tests.support.mutations import Entry, Model, Tensor

U32, F32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
STRING, BOOL, ARRAY = GGUFValueType.STRING, GGUFValueType.BOOL, GGUFValueType.ARRAY
NAN, INFINITY = float("nan"), float("inf")

COMMANDS = (
    ("generate", "MODEL", "he was"),
    ("chat", "MODEL"),
    ("plan", "MODEL"),
    ("bench", "MODEL", "--quick"),
    ("verify", "MODEL"),
    ("calibrate", "MODEL"),
)
READERS = (("info", "MODEL"), ("bench", "--replay", "README.md", "--curve", "flat", "MODEL"))
needs_special_files = pytest.mark.skipif(sys.platform == "win32", reason="has no such files")

Change = Callable[[Model], object]


def put(**values: Any) -> Change:
    """Sets values below "llama", with underscores for full stops where there are two."""

    def change(model: Model) -> None:
        for name, value in values.items():
            kinds = {bool: BOOL, int: U32, float: F32, str: STRING, list: ARRAY}
            entry = Entry(kinds[type(value)], value, U32 if isinstance(value, list) else None)
            model.keys[f"llama.{name.replace('__', '.')}"] = entry

    return change


def full(key: str, value: str) -> Change:
    """Sets a text by its full name."""
    return lambda model: model.keys.update({key: Entry(STRING, value)})


def without(key: str) -> Change:
    """Drops a key."""
    return lambda model: model.keys.pop(key)


def renamed(architecture: str) -> Change:
    """The same with another architecture."""

    def change(model: Model) -> None:
        model.keys = {
            re.sub(r"^llama\.", f"{architecture}.", key): entry for key, entry in model.keys.items()
        }
        model.keys["general.architecture"] = Entry(STRING, architecture)

    return change


def old_projector(model: Model) -> None:
    """As they were before files had a type: no keys of a language model."""
    model.keys = {
        "general.architecture": Entry(STRING, "clip"),
        "clip.has_vision_encoder": Entry(BOOL, True),
    }


def typed(kind: int) -> Change:
    """A matrix of another type, with all its bytes."""

    def change(model: Model) -> None:
        place = next(i for i, tensor in enumerate(model.tensors) if "attn_q" in tensor.name)
        old = model.tensors[place]
        model.tensors[place] = Tensor(old.name, old.shape, kind, old.data * 2)

    return change


EXPERTS = {"expert_count": 4, "expert_used_count": 2}

# What is done to a model, and the words that say why it cannot be run.
REFUSED: tuple[tuple[Change, tuple[str, ...]], ...] = (
    (renamed("bert"), ("encoder",)),
    (renamed("modern-bert"), ("encoder",)),
    (renamed("t5"), ("encoder",)),
    (renamed("llada"), ("diffusion model",)),
    (renamed("eagle3"), ("draft head",)),
    (renamed("wavtokenizer-dec"), ("does not generate text",)),
    (old_projector, ("does not generate text",)),
    (renamed("martian"), ("llama.cpp of this build does not know", "'martian'", "newer llama-cpp")),
    (put(attention__causal=False), ("not causal",)),
    (put(pooling_type=3), ("embeddings or ranks", "llama.pooling_type")),
    (put(pooling_type=4), ("embeddings or ranks", "llama.pooling_type")),
    (lambda model: model.tensors.clear(), ("no weights",)),
    (without("llama.context_length"), ("llama.context_length is missing",)),
    (put(context_length=0), ("llama.context_length is 0,", "from 1 to 2,147,483,647")),
    (put(context_length=1 << 31), ("llama.context_length is 2,147,483,648,",)),
    (put(context_length="long"), ("llama.context_length is 'long'",)),
    (put(context_length=True), ("llama.context_length is True",)),
    (put(block_count=0), ("llama.block_count is 0,", "from 1 to 512")),
    (put(block_count=513), ("llama.block_count is 513,",)),
    (without("llama.embedding_length"), ("llama.embedding_length is missing",)),
    (put(attention__head_count=0), ("llama.attention.head_count is 0", "at least 1")),
    (put(attention__head_count=[0, 4]), ("llama.attention.head_count is 0",)),
    (without("llama.attention.head_count"), ("llama.attention.head_count is missing",)),
    (put(nextn_predict_layers=2), ("llama.nextn_predict_layers is 2", "block_count, which is 2")),
    (put(**EXPERTS | {"expert_used_count": 8}), ("llama.expert_used_count is 8", "which is 4")),
    (put(**EXPERTS | {"expert_used_count": 0}), ("llama.expert_used_count is 0", "from 1 to")),
    (put(**EXPERTS | {"expert_used_count": [1, 5]}), ("llama.expert_used_count is 5",)),
    (put(expert_used_count=1), ("llama.expert_used_count is 1", "which is 0")),
    (put(expert_count=2000, expert_used_count=2), ("llama.expert_count is 2,000", "1,024")),
    (put(**EXPERTS, expert_group_count=4), ("llama.expert_group_count is 4", "less than")),
    (put(**EXPERTS, expert_group_count=3), ("llama.expert_group_count is 3", "must divide")),
    (put(**EXPERTS, expert_group_count=2), ("llama.expert_group_used_count is 0", "at least 1")),
    (put(rope__dimension_count=0), ("llama.rope.dimension_count is 0", "even number")),
    (put(rope__dimension_count=5), ("llama.rope.dimension_count is 5", "even number")),
    (put(rope__dimension_count_swa=0), ("llama.rope.dimension_count_swa is 0",)),
    (put(rope__scaling__type="martian"), ("llama.rope.scaling.type is 'martian'", "yarn")),
    (put(attention__layer_norm_rms_epsilon=NAN), ("layer_norm_rms_epsilon is nan",)),
    (put(attention__layer_norm_rms_epsilon=-1.0), ("layer_norm_rms_epsilon is -1.0",)),
    (put(attention__layer_norm_epsilon=INFINITY), ("layer_norm_epsilon is inf",)),
    (put(rope__freq_base=NAN), ("llama.rope.freq_base is nan",)),
    (full("tokenizer.ggml.model", "no_vocab"), ("tokenizer.ggml.model is 'no_vocab'",)),
    (full("tokenizer.ggml.model", "none"), ("tokenizer.ggml.model is 'none'",)),
    (full("tokenizer.ggml.model", "bert"), ("tokenizer.ggml.model is 'bert'",)),
    (without("tokenizer.ggml.model"), ("tokenizer.ggml.model is missing",)),
    (typed(24), ("of type I8",)),
    (typed(26), ("of type I32",)),
)
# These are no models at all, and `info` refuses them, too.
NO_MODELS: tuple[tuple[Change, tuple[str, ...]], ...] = (
    (full("general.type", "mmproj"), ("multimodal projector",)),
    (full("general.type", "adapter"), ("LoRA adapter",)),
    (full("general.type", "imatrix"), ("imatrix",)),
    (without("general.architecture"), ("does not say which architecture",)),
    (full("general.architecture", "ll\nama"), ("architecture 'll\\nama', which is no name",)),
)


@pytest.fixture
def changed(tiny_model: TinyModel, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes a tiny model with something changed."""

    def write(change: Change) -> Path:
        model = Model.read(tiny_model())
        change(model)
        return model.write(tmp_path / "changed.gguf")

    return write


def refusal(*words: str | Path) -> str:
    """The line of a command that is refused with exit code 3, and writes nothing else."""
    outcome = run(*words, stdin="he was")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("specgen: error: ")
    assert outcome.err.count("\n") == 1
    return outcome.err


@pytest.mark.parametrize(("change", "words"), [*REFUSED, *NO_MODELS])
def test_what_cannot_generate(
    changed: Callable[[Change], Path], change: Change, words: tuple[str, ...]
) -> None:
    """The reason and the file are named; whoever uses the engine without the commands is told."""
    path = changed(change)
    message = refusal("plan", path)
    assert all(word in message for word in words), message
    assert str(path) in message
    assert " (" in message  # what to do
    with pytest.raises(ModelError) as caught:
        Engine(path, (), EngineConfig(threads=1))
    assert caught.value.message in message
    with pytest.raises(ModelError):
        LlamaModel(path)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("change", [old_projector, put(attention__causal=False), renamed("bert")])
def test_every_command_has_the_same_door(
    changed: Callable[[Change], Path], change: Change, command: tuple[str, ...]
) -> None:
    """It gives the reason that `plan` gives, and the other that runs a model as a drafter, too."""
    path = changed(change)
    words = [path if word == "MODEL" else word for word in command]
    assert refusal(*words) == refusal("plan", path)


@pytest.mark.parametrize("command", ["generate", "chat", "plan", "bench"])
def test_draft_models_pass_it_too(
    changed: Callable[[Change], Path], tiny_model: TinyModel, command: str
) -> None:
    """A draft model that cannot generate is refused before the model is measured or loaded."""
    path = changed(put(attention__causal=False))
    assert refusal(command, tiny_model(), "-md", path) == refusal("plan", path)


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_info_gives_the_same_reason(
    changed: Callable[[Change], Path], change: Change, words: tuple[str, ...]
) -> None:
    """It shows what is there all the same, and says that it cannot be run and why."""
    path = changed(change)
    record = run("info", path, "--json")
    assert (record.code, record.err) == (0, "")
    told = run("info", path).out
    assert "cannot run it: " in told
    assert words[0] in told
    assert f"cannot run {path}: " in refusal("plan", path)


def test_weights_may_be_in_other_parts(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A first part with nothing but the header is no file without weights."""
    first = Model.read(tiny_model())
    rest = Model({}, first.tensors)
    first.tensors = []
    for i, part in enumerate((first, rest)):
        kind = GGUFValueType.UINT16
        part.keys |= {"split.no": Entry(kind, i), "split.count": Entry(kind, 2)}
        part.keys["split.tensors.count"] = Entry(GGUFValueType.INT32, len(rest.tensors))
        part.write(tmp_path / f"m-0000{i + 1}-of-00002.gguf")
    words = ("he was", "-n", "5", "--greedy", "--drafter", "none")
    assert text_of(tmp_path / "m-00001-of-00002.gguf", *words) == text_of(tiny_model(), *words)


def test_one_expert_of_hunyuan_is_none(changed: Callable[[Change], Path]) -> None:
    """llama.cpp takes such files for dense ones, whatever they say of used experts."""

    def change(model: Model) -> None:
        put(expert_count=1, expert_used_count=2)(model)
        renamed("hunyuan-dense")(model)

    assert not read_model(changed(change)).refusal


def test_which_architectures_there_are() -> None:
    """llama.cpp is asked, and what it says of a name that it does not know is not shown."""
    known = ("llama", "gemma3", "mamba", "lfm2", "granitehybrid", "qwen3moe")
    assert all(map(knows_architecture, known))
    assert not knows_architecture("martian")
    assert not knows_architecture("")


def test_a_bias_that_llama_cpp_does_not_miss(tiny_model: TinyModel, tmp_path: Path) -> None:
    """It loads a convolution without one, and reads it all the same."""
    model = Model.read(tiny_model("granitehybrid"))
    model.tensors = [tensor for tensor in model.tensors if "conv1d.bias" not in tensor.name]
    path = model.write(tmp_path / "m.gguf")
    assert "tensor 'blk.0.ssm_conv1d.bias' is missing" in refusal("generate", path)


@needs_special_files
@pytest.mark.parametrize("command", [*COMMANDS, *READERS], ids=lambda words: "-".join(words[:2]))
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file(tmp_path: Path, kind: str, command: tuple[str, ...]) -> None:
    """A pipe would wait for a writer, so none of these is opened."""
    path, listening = tmp_path / "m.gguf", socket.socket(socket.AF_UNIX)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        listening.bind(os.path.relpath(path))  # its name may not be long
    else:
        path = Path(os.devnull)
    words = [path if word == "MODEL" else word for word in command]
    with listening:
        assert f"{path} is not a regular file" in refusal(*words)
    with pytest.raises(ModelError, match="not a regular file"):
        fingerprint(path)


@needs_special_files
def test_names_that_are_no_text(tiny_model: TinyModel, tmp_path: Path) -> None:
    """A model with such a name runs, what does not is refused, and JSON is UTF-8 all the same."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve.gguf"))
    try:
        shutil.copy(tiny_model(), path)
    except OSError:
        pytest.skip("this system's names are text")
    words = ("he was", "-n", "5", "--greedy", "-t", "1")
    assert text_of(path, *words) == text_of(tiny_model(), *words)
    assert record_of(path, *words)["model"] == "na\ufffdve.gguf"
    info = run("info", path, "--json").out
    assert "na\\ufffdve.gguf" in info
    assert "\\udcef" not in info
    assert "na\ufffdve.gguf" in run("info", path).out
    path.unlink()
    assert "no such file" in generate(path, "he was").err


@needs_special_files
@pytest.mark.parametrize("name", ["größe.gguf".encode(), b"gr\xf6\xdfe.gguf"])
def test_names_in_another_locale(tiny_model: TinyModel, tmp_path: Path, name: bytes) -> None:
    """Where the locale is not UTF-8 the file is found by its bytes, and told as what they say."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    shutil.copy(tiny_model(), path)
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    words = ("he was", "-n", "5", "--greedy", "-t", "1")
    command = [sys.executable, "-m", "specgen", "generate", path, *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, input=b"")
    record = json.loads(done.stdout)
    assert record["model"] == name.decode("utf-8", "replace")
    assert record["choices"][0]["text"] == text_of(tiny_model(), *words)
