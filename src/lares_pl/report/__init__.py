"""What a run learned, as tables and charts on one page: `lares report`.

From the bottom up: `sources` (which checkpoints), `measure`, `distributions` and `latency` (what is measured), `statistics`
(intervals and tests), `study` (all of it, of all runs), `page`, `charts` and `html` (how it is shown), `quality`, `steps`,
`training`, `comparison`, `provenance` (sections: text, charts, tables), `command`.
"""
