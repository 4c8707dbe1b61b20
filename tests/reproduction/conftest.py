from tests.results import folder, slurm_with, write_result

__all__ = ["folder", "slurm_with", "write_result"]
