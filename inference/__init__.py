"""A trained model on other texts, in a folder, on the hub."""
