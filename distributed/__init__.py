"""How it scales: mining, feature and FID actors, Ray Train, the pipeline. All the Ray there is.

`METAREPAIR` marks this package as ours: other projects use the import name `distributed`, too.
"""

METAREPAIR = True
