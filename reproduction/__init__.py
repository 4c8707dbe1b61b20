"""From result files to tables and figures, with the published numbers beside ours."""
