"""Running a program: devices, processes, checkpoints, run directories, logging and JSON."""
