package bench

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strings"
)

// plot is a line chart with a logarithmic y axis: the subjects differ by factors.
type plot struct {
	file, title, x, y string
	subjects          []string // decide the colours: one has the same in all plots
	lines             []line
}

type line struct {
	name   string
	points []point
}

type point struct{ x, y float64 }

// add appends a point to the line of a subject.
func (p *plot) add(name string, x, y float64) {
	i := slices.IndexFunc(p.lines, func(l line) bool { return l.name == name })
	if i < 0 {
		i = len(p.lines)
		p.lines = append(p.lines, line{name: name})
	}
	p.lines[i].points = append(p.lines[i].points, point{x, y})
}

// The layout, in pixels.
const (
	plotWidth, plotHeight = 720, 360
	left, right           = 60, 200 // right has the names
	top, bottom           = 40, 45
	labelGap              = 14
)

// colours are told apart by readers with the usual kinds of colour blindness
// (Okabe and Ito), on a light and on a dark page.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"}

// bounds are the largest x, and the powers of ten around all y.
func (p *plot) bounds() (maxX, low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, l := range p.lines {
		for _, at := range l.points {
			maxX = max(maxX, at.x)
			if at.y > 0 {
				low, high = min(low, at.y), max(high, at.y)
			}
		}
	}
	if high < low {
		low, high = 1, 1
	}
	low, high = math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	return max(maxX, 1), low, max(high, low+1)
}

// svg draws it. Lines are sorted by their last value, as their names are.
func (p *plot) svg() string {
	maxX, low, high := p.bounds()
	x := func(v float64) float64 { return left + v/maxX*(plotWidth-left-right) }
	y := func(v float64) float64 {
		part := (math.Log10(max(v, math.Pow(10, low))) - low) / (high - low)
		return plotHeight - bottom - part*(plotHeight-top-bottom)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, plotHeight)
	text := func(x, y float64, anchor, colour, words string) {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, colour, escape(words))
	}
	text(left, top/2, "start", "#222222", p.title+", "+p.y)
	for power := low; power <= high; power++ {
		value := math.Pow(10, power)
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#dddddd"/>`+"\n", left, y(value), plotWidth-right)
		text(left-6, y(value)+4, "end", "#444444", fmt.Sprintf("%g", value))
	}
	for _, v := range p.counts() {
		text(x(v), plotHeight-bottom+18, "middle", "#444444", fmt.Sprintf("%g", v))
	}
	text((left+plotWidth-right)/2, plotHeight-8, "middle", "#444444", p.x)
	p.draw(&b, x, y, text)
	b.WriteString("</svg>\n")
	return b.String()
}

// draw draws the lines, and their names so that none covers another.
func (p *plot) draw(b *strings.Builder, x, y func(float64) float64, text func(x, y float64, anchor, colour, words string)) {
	lines := slices.Clone(p.lines)
	last := func(l line) point { return l.points[len(l.points)-1] }
	slices.SortFunc(lines, func(a, b line) int { return cmp.Or(cmp.Compare(last(b).y, last(a).y), cmp.Compare(a.name, b.name)) })
	label := float64(0)
	for _, l := range lines {
		colour := colours[max(slices.Index(p.subjects, l.name), 0)%len(colours)]
		var path []string
		for _, at := range l.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(at.x), y(at.y)))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(at.x), y(at.y), colour)
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), colour)
		label = max(label+labelGap, y(last(l).y)+4)
		text(x(last(l).x)+8, label, "start", colour, l.name)
	}
}

// counts are the values of the x axis.
func (p *plot) counts() []float64 {
	var all []float64
	for _, l := range p.lines {
		for _, at := range l.points {
			all = append(all, at.x)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func escape(words string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(words)) // a strings.Builder never fails
	return b.String()
}
