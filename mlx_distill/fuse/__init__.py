"""An adapter added into a standalone model, and verified."""
