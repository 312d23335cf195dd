"""What a run of many images takes: cores for each GPU, GPU hours, bytes, requests, memory.

``figures``   what was measured, where, and what is an estimate, by which derivation
``instances`` GPUs, machines of the clouds that have them, and image towers
``plan``      from these to the needs of one run
``tables``    the same as text: what ``captioner plan`` prints, and the tables of cluster/SIZING.md
"""

from captioner.sizing.plan import Job, Plan, plan

__all__ = ["Job", "Plan", "plan"]
