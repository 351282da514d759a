"""The recurrent-depth model: single-device code that knows no trainer."""
