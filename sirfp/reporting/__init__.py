"""Tables and figures of what a cut did."""
