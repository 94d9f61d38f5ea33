"""The wire as Go nodes speak it: recordings replayed, the rules, and all that peers do wrong."""
