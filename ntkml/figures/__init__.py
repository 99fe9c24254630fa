"""From rows to pictures: nothing here computes an estimate or imports torch."""
