"""From stored batches to what tasks take: intensities and augmentation."""
