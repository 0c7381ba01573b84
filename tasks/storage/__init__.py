"""Files that are whole or absent, on a local disk or in an object store; manifests, locks and leases."""
