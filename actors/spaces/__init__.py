"""From Gymnasium spaces to the arrays of a step, and back to actions."""
