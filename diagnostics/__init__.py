"""Checks that judge every engine alike: conversion to ArviZ's schema, convergence, calibration."""
