"""A module whose import takes its time, as Python's start does on a file system that is busy."""

import time

time.sleep(60)
