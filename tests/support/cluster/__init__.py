"""A real Kubernetes cluster for tests, on one Linux machine, in namespaces of its own that end with the process."""
