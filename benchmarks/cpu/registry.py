"""All subjects by name."""

from cpu.ours import OURS
from cpu.peers import PEERS
from cpu.subjects import Subject

SUBJECTS: dict[str, Subject] = {subject.name: subject for subject in (*PEERS, *OURS)}
FP32, BF16 = "eager fp32", "eager bf16"
"""What every other subject is compared with, measured beside each of them."""
