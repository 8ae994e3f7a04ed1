import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# Triton decides when it is first imported, by whomever, whether kernels are compiled or interpreted.
if not pathlib.Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A second thread has little to do in models this small, and spins on a core that workers, or whoever else, may need.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
