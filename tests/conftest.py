from hypothesis import settings

# Derandomised: a run on a laptop and a run in CI try the same examples.
settings.register_profile("qbook", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("qbook")
