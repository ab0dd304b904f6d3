"""`run`, `init` and `doctor`: create a project, check the machine, and run the stages that are not up to date."""
