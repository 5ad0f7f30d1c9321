"""A pair's speed: measured by `bench` and forecast by `plan`."""
