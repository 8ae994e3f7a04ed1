"""What the paper states (arXiv 2509.19729, v1 and v2), in one place; the figures compare with nothing else.

Its full text was not at hand: the numbers come from its abstract and from public reviews of it. DOUBTFUL has those that are
reported inconsistently or look implausible, and which reading is taken.
"""

from __future__ import annotations

# -- 1. motivation: Qwen2.5-32B, 4 x H20 96 GB, 1K-token requests ------------------------------------------------------

CONTEXT_TOKENS = {1: 3_750.0, 2: 41_250.0, 4: 120_500.0}
TOKENS_PER_S = {1: 1_792.0, 2: 1_340.0, 4: 767.0}  # of all four devices, by TP degree
NAIVE_EXTRA_BYTES = 15.58e9  # 4 x TP1 -> TP4
NAIVE_KV_S = (0.522, 2.240)  # moving the KV cache of Qwen2.5-32B

# -- 2. KV cache, 90 % full, five models -------------------------------------------------------------------------------

KV_NAIVE_S = (3.15e-3, 4.0e-3)
KV_IN_PLACE = -0.61  # up to
KV_OVERLAP = -0.86  # up to
KV_EXTRA_MEMORY = -0.916
KV_EXTRA_BYTES = 70e6  # under

# -- 3. FFN weights ----------------------------------------------------------------------------------------------------

FFN_NAIVE_S = (0.620, 0.770)
FFN_PADDING = (-0.422, -0.189)
FFN_OVERLAP = -0.85  # up to
PADDING_MEMORY = (0.0, 0.14)  # of the weights, by model
PADDING_GEMM = 0.001  # under

# -- 4. order and overlap ----------------------------------------------------------------------------------------------

AGAINST_SEESAW = -0.972  # all layers in one step
STEP_OVERHEAD = 0.01  # under

# -- 5. and 6. scheduler and end to end --------------------------------------------------------------------------------

SCHEDULER_GAIN = (0.261, 0.392)  # mean throughput, against RR and LLF
SYSTEM_GAIN = (1.75, 6.57)  # throughput, against KunServe and LoongServe
TTFT_CUT = -0.53  # up to
TPOT_CUT = -0.74  # up to
SLO_TTFT_S = 10.0  # at 0.6 requests/s

# Where they were measured.
MODELS = {
    "Llama2-7B": ("meta-llama/Llama-2-7b-hf", "a100-40g"),
    "Llama3-8B": ("meta-llama/Meta-Llama-3-8B", "a100-40g"),
    "Qwen2.5-32B": ("Qwen/Qwen2.5-32B", "h20"),
    "Qwen3-32B": ("Qwen/Qwen3-32B", "h20"),
    "Qwen3-30B-A3B": ("Qwen/Qwen3-30B-A3B", "h20"),
}

DOUBTFUL = {
    "context": "The limit of 3.75K tokens at TP1: KV alone is 256 KiB a token, of which an H20 has room for 72K. Taken is that "
    "the rest is memory which the paper's engine needs for each token of a prefill that is not chunked.",
    "kv time": "The naive KV transformation of 3.15 to 4 ms is taken per layer, since the same source has 522 to 2,240 ms for a "
    "model.",
    "ffn time": "The naive FFN transformation of 620 to 770 ms is reported per layer; 850 MB of weights a layer over NVLink "
    "cannot take that, so it is taken as the whole model's.",
}
