"""Run folders -> one self-contained HTML page with tables, curves and grids."""
