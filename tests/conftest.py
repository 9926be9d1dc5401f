"""What holds for every test."""

import os

from hypothesis import settings

# Before torch is imported: on networks this small, threads mostly wait for each other, and more so
# where the machine has other work or the tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asserts a time, and a busy machine is no failure.
settings.register_profile("fedsprig", deadline=None)
settings.load_profile("fedsprig")
