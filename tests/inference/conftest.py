from tests.random_data import language_model, recorder, regressor, reviews, streams, trainer
from tests.results import folder, write_result

__all__ = ["folder", "language_model", "recorder", "regressor", "reviews", "streams", "trainer", "write_result"]
