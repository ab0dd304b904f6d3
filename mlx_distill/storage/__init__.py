"""Files that survive: journals, atomic writes, stage manifests, and the data shipped with the package."""
