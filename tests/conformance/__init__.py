"""One set of tests that every stream must pass, fake or real."""
