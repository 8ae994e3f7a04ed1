"""Many simulated hosts behind a router, and what fails of them. Transformations stay inside a host. Torch-free."""
