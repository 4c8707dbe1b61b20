"""Use of a trained model: predictions for other texts, ensembles, export to a folder or the Hugging Face hub."""
