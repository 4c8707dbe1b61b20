"""Fast twins of `functional.unroll`, one file each; the reference is their oracle."""
