import tests.models  # noqa: F401 - it reads every family's tiny model, so it comes before them
