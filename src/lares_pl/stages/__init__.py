"""Training stages as LightningModules."""
