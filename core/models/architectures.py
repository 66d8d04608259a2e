"""What llama.cpp's architectures can do: lists by name, as of the version we build against.

A name in none of the lists is a decoder with plain attention, which is right for most.
"""

from __future__ import annotations

from typing import Final

# The whole past is one state: nothing can be taken back.
RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})

# Some layers keep a state, others a cache.
HYBRID: Final = frozenset(
    {
        *("jamba", "falcon-h1", "plamo2", "granitehybrid", "lfm2", "lfm2moe"),
        *("nemotron_h", "nemotron_h_moe", "qwen3next", "kimi-linear", "kimi-k3"),
        *("bailingmoe3", "glm5-next", "qwen35", "qwen35moe", "qwen4exp"),
        *("deepseek4", "minimax-01"),
    }
)

# Hybrids whose states llama.cpp can keep for some tokens and roll back (`n_rs_seq`).
SNAPSHOTS: Final = frozenset(
    {
        *("kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "glm5-next"),
        *("nemotron_h", "nemotron_h_moe", "lfm2", "lfm2moe", "bailingmoe3"),
    }
)

# Hybrids where every n-th layer (4 unless the file says so) has a cache, the others a state.
INTERVAL: Final = frozenset({"qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"})

# Architectures for which llama.cpp reads `attention.sliding_window`.
SLIDING: Final = frozenset(
    {
        *("afmoe", "cohere2", "cohere2moe", "deepseek4", "dots3note", "exaone-moe", "exaone4"),
        *("gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "gpt-oss", "granite_swa"),
        *("laguna", "lfm2", "llama4", "maple", "mellum", "mimo2", "modern-bert"),
        *("muse-glimmer", "olmo2", "plamo3", "smallthinker", "spark2_5", "step35"),
    }
)

# The window where the file does not state it; llama4 and smallthinker always have this one.
WINDOW: Final = (("gemma2", 4096), ("llama4", 8192), ("smallthinker", 4096))

ENCODER: Final = frozenset(
    {
        *("t5", "t5encoder", "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert"),
        *("jina-bert-v2", "jina-bert-v3", "eurobert", "gemma-embedding", "llama-embed"),
    }
)
DIFFUSION: Final = frozenset({"dream", "llada", "llada-moe", "rnd1"})
DRAFT_HEAD: Final = frozenset({"eagle3", "dflash", "gemma4-assistant"})
NOT_TEXT: Final = frozenset({"clip", "wavtokenizer-dec", "qwen3tts", "pockettts"})


def refusal(architecture: str) -> str:
    """Why models of this architecture cannot be run; empty where they can."""
    if architecture in ENCODER:
        return "it has an encoder and does not generate text token by token"
    if architecture in DIFFUSION:
        return "it is a diffusion model and does not generate text token by token"
    if architecture in DRAFT_HEAD:
        return "it is the draft head of another model"
    if architecture in NOT_TEXT:
        return "it does not generate text"
    return ""
