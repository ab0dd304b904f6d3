"""The whole job of a project: stage after stage, with manifests that say what is up to date."""
