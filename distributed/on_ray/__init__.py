"""Connections, actor pools, tasks and training contexts on Ray."""
