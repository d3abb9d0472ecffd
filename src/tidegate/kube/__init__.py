"""The Kubernetes API, as far as a dataplane needs it: authentication, list and watch, typed partial objects."""
