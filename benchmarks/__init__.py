"""Speed, measured beside what others offer."""
