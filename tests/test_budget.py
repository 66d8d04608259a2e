"""Fitting a budget: what is given up, when it is refused, and what a budget may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.budget import Subject, fit, full_speed, least, parse_budget, plan_for
from specgen.core.config import EngineConfig
from specgen.core.errors import MemoryBudgetError
from specgen.core.host import _cgroup_memory
from specgen.core.modelinfo import ModelInfo, read_headers

from .conftest import TinyModel
from .headers import MADE

MB = 1_000_000
MIB = 1 << 20
WANTED = EngineConfig(flash_attention=True)


def tables(n_ctx: int, few: bool) -> int:
    """Of drafters: 2 MB and some by the context, or half of it."""
    return (2 * MB + 70 * n_ctx) // (2 if few else 1)


@pytest.fixture
def subject(tiny_model: TinyModel) -> Subject:
    """A tiny model."""
    headers = read_headers(tiny_model())
    return Subject(headers, ModelInfo.from_headers(headers), frozenset(), tables)


def test_enough_memory_changes_nothing(subject: Subject) -> None:
    """What fits as asked is left as it is."""
    found = fit(subject, WANTED, 10**12)
    assert (found.config, found.concessions) == (WANTED, ())
    assert found.plan == plan_for(subject, WANTED)


def test_every_budget_is_kept(subject: Subject) -> None:
    """From the least that works to what was asked for; more memory never gives less of anything."""
    low, high = least(subject, WANTED).total, plan_for(subject, WANTED).total
    before = None
    for step in range(101):
        budget = low + (high - low) * step // 100
        found = fit(subject, WANTED, budget)
        assert found.plan == plan_for(subject, found.config)
        assert found.plan.total <= budget
        assert bool(found.concessions) == (found.config != WANTED)
        if before:
            assert found.plan.total >= before.plan.total * 0.9
        before = found
    assert before is not None
    assert before.config == WANTED


def test_a_byte_less_than_the_least_is_refused(subject: Subject) -> None:
    """With what would fit, in one line."""
    low = least(subject, WANTED).total
    with pytest.raises(MemoryBudgetError, match="needs") as failure:
        fit(subject, WANTED, low - 1)
    assert f"--memory-budget {-(-low // MIB)}M" in failure.value.hint
    assert failure.value.exit_code == 4
    assert fit(subject, WANTED, -(-low // MIB) * MIB).plan.total <= -(-low // MIB) * MIB


def test_nothing_is_given_up_in_vain(subject: Subject) -> None:
    """Each concession is needed: without any one of them the budget would be crossed."""
    low, high = least(subject, WANTED).total, plan_for(subject, WANTED).total
    for step in range(1, 40):
        budget = low + (high - low) * step // 40
        config = fit(subject, WANTED, budget).config
        for name in ("chunk", "max_drafts", "type_k", "few_drafters", "lean"):
            wanted = getattr(WANTED, name)
            if getattr(config, name) != wanted:
                better = replace(config, **{name: wanted})
                assert plan_for(subject, better).total > budget, (budget, name)


def test_a_context_that_was_asked_for_is_kept(subject: Subject) -> None:
    """-c is a promise; without it the context shrinks."""
    asked = replace(WANTED, n_ctx=1024)
    assert fit(subject, asked, least(subject, asked).total).config.n_ctx == 1024
    shrunk = fit(subject, WANTED, least(subject, WANTED).total).config
    assert shrunk.n_ctx == 512


def test_strict_keeps_what_rounding_depends_on(subject: Subject) -> None:
    """The calls of a prompt, and the type of the cache."""
    strict = replace(WANTED, strict=True)
    config = fit(subject, strict, least(subject, strict).total).config
    assert (config.chunk, config.cache_types) == (WANTED.chunk, ("f16", "f16"))


def test_a_cache_that_rounds_comes_last(subject: Subject) -> None:
    """All else is given up before the text may change."""
    low, high = least(subject, WANTED).total, plan_for(subject, WANTED).total
    for step in range(40):
        config = fit(subject, WANTED, low + (high - low) * step // 40).config
        if config.type_k:
            assert config.max_drafts == 0
    assert fit(subject, WANTED, low).config.cache_types == ("q4_0", "q4_0")


def test_without_flash_attention_the_cache_keeps_its_type(subject: Subject) -> None:
    """llama.cpp has no quantized cache there."""
    off = EngineConfig(flash_attention=False)
    assert fit(subject, off, least(subject, off).total).config.type_v is None


def test_full_speed_needs_less_than_all(subject: Subject) -> None:
    """Only the context is less."""
    low, high = least(subject, WANTED).total, plan_for(subject, WANTED).total
    assert low < full_speed(subject, WANTED).total < high


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("400M", 400 * MIB),
        ("400m", 400 * MIB),
        ("400MB", 400 * MB),
        ("1.5G", 1536 * MIB),
        ("1.5GB", 1500 * MB),
        ("300MiB", 300 << 20),
        ("2GiB", 2 << 30),
        ("1000000", MB),
        ("1 k", 1024),
        ("25%", 1_000 * MB),
        (" 12.5% ", 500 * MB),
    ],
)
def test_budgets(text: str, n_bytes: int) -> None:
    """Sizes by 1,000 and by 1,024, and parts of what is available."""
    assert parse_budget(text, 4_000 * MB) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "abc", "0", "0%", "-1G", "1X", "M", "%", "1e9", "nan", "inf", "4G", "101%", "1" * 99],
)
def test_what_is_no_budget(text: str) -> None:
    """One clear error, exit code 4."""
    with pytest.raises(MemoryBudgetError, match="budget"):
        parse_budget(text, 4_000 * MB)


def test_a_part_of_what_is_not_known() -> None:
    """A size is needed where the system does not tell what is available."""
    assert parse_budget("9G", None) == 9 << 30
    with pytest.raises(MemoryBudgetError, match="does not tell"):
        parse_budget("50%", None)


def write(folder: Path, **files: object) -> None:
    """Files of a cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """The tightest group counts, less what is in use; files that can be dropped are free."""
    membership = tmp_path / "membership"
    membership.write_text("0::/a/b\n")
    root = tmp_path / "root"
    write(
        root / "a",
        memory__max=1000,
        memory__current=400,
        memory__stat="anon 9\ninactive_file 40\nactive_file 10\nfile 99",
    )
    write(root / "a" / "b", memory__max="max", memory__current=100)
    assert _cgroup_memory(membership, root) == 650
    write(root / "a" / "b", memory__max=300, memory__current=100)
    assert _cgroup_memory(membership, root) == 200
    write(root, memory__max="max")
    assert _cgroup_memory(membership, root) == 200
    membership.write_text("5:memory:/c\n4:cpu:/d\n")
    assert _cgroup_memory(membership, root) is None
    write(
        root / "memory" / "c",
        memory__limit_in_bytes=5000,
        memory__usage_in_bytes=1000,
        memory__stat="total_inactive_file 7\ntotal_active_file 3\ntotal_cache 99",
    )
    assert _cgroup_memory(membership, root) == 4010
    assert _cgroup_memory(tmp_path / "nowhere", root) is None


def test_originals_of_copies_do_not_count_where_the_system_may_drop_them(tmp_path: Path) -> None:
    """By default a model fits whose file and copies are more than there is; a size is kept."""
    headers = read_headers(MADE["7b"].write(tmp_path / "m.gguf"))
    features = frozenset({"AVX2", "REPACK"})
    subject = Subject(headers, ModelInfo.from_headers(headers), features, tables)
    config = replace(WANTED, n_ctx=512)
    plan = plan_for(subject, config)
    assert plan.copies > plan.weights / 2
    budget = plan.total - plan.copies
    found = fit(subject, config, budget, may_drop=True)
    assert (found.config, found.ceiling) == (config, plan.total)
    with pytest.raises(MemoryBudgetError, match="and the memory budget is"):
        fit(subject, config, budget)
    with pytest.raises(MemoryBudgetError, match="85% of what is available") as failure:
        fit(subject, config, plan.used // 2, may_drop=True)
    assert "--memory-budget" not in failure.value.hint
