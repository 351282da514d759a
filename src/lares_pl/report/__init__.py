"""`lares report`: trained runs as tables and charts on one page.

From the bottom up: `sources` (the checkpoints), `measure`, `distributions` and `latency` (measurements), `statistics`
(intervals and tests), `study` (all measurements of all runs), `page`, `charts` and `html` (presentation), `quality`, `steps`,
`training`, `comparison`, `provenance` (sections: text, charts, tables), `command`.
"""
