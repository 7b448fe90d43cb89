"""Meshes: devices with named axes, and the layouts of parameters that axes divide.

A layout file names the axes that divide each dimension. From these names and the sizes of the axes follow the layouts that a
strategy file lists for each parameter.
"""
