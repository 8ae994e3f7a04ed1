"""What kernels reach on the device at hand, each as a share of a ceiling measured in the same run (docs/cuda.md).

    clock.py       seconds of a piece of work, by the device's own clock, with cold caches; copy bandwidth
    attention.py   paged decode attention: layouts, contexts, batches, beside torch's fused attention on gathered KV
    tuning.py      launch parameters of decode attention
    copies.py      transfers and compaction of KV blocks, beside a plain copy
    model.py       a model alone on a device, without an engine
    step.py        a whole decode step, beside its bandwidth floor and transformers
    machine_code.py  what the compiled kernels look like; needs no GPU
    parity.py      a self-test of the kernels, each against its twin

Every function takes the device. On a CPU they run too, in small form and with whatever kernels there are: that is how they are
tested, and no figure from there means anything.
"""
