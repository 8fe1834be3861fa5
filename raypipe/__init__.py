"""raypipe (placeholder, the integrator writes it)."""
