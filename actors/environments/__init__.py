"""Making environments: ids, suites, wrappers, rendering, and the code of the user around them."""
