"""The transform of stored batches into batches of tasks: intensities and augmentation."""
