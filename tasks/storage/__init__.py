"""Storage on a local disk or in an object store: atomic files, manifests, locks and leases."""
