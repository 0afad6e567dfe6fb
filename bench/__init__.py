# SPDX-License-Identifier: GPL-2.0-or-later
"""The budgets of the design, each as one ratio of two things measured side by side in one run."""
