package mountopt

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// flag is a word without a value.
func flag(key string, field func(*Options) *bool) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) error {
			if t.hasValue {
				return errUnknown
			}
			*field(o) = true
			return nil
		},
		words: func(o *Options) []Word { return wordIf(*field(o), key) },
	}
}

// pair is a word and its opposite.
func pair(on, off string, field func(*Options) *Switch) spec {
	return spec{
		keys: []string{on, off},
		set: func(o *Options, t token) error {
			if t.hasValue {
				return errUnknown
			}
			*field(o) = Off
			if t.key == on {
				*field(o) = On
			}
			return nil
		},
		words: func(o *Options) []Word {
			return slices.Concat(wordIf(*field(o) == On, on), wordIf(*field(o) == Off, off))
		},
	}
}

// enum is key=NAME, where the position of NAME among names is the field's value. The zero value is never written; it may
// be unnamed ("").
func enum[T ~int](key string, field func(*Options) *T, names ...string) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) error {
			s := unescape(t.value)
			i := slices.Index(names, s)
			if i < 0 || s == "" {
				problem := "is not known"
				if s == "" {
					problem = "needs a value"
				}
				return t.bad(problem, "give one of "+list(names))
			}
			*field(o) = T(i)
			return nil
		},
		words: func(o *Options) []Word {
			v := *field(o)
			return valueIf(v != 0, key, names[v])
		},
	}
}

// list joins the names that are not empty.
func list(names []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "" }), ", ")
}

// onOff is key=on|off.
func onOff(key string, field func(*Options) *Switch) spec {
	return enum(key, field, "", "on", "off")
}

// setNumberSwitch reads a number of which only zero or not counts; none at all counts as one.
func setNumberSwitch(s *Switch, t token) error {
	n := int64(1)
	if t.hasValue {
		var err error
		if n, err = number(t, math.MinInt32, math.MaxInt32, "give 0 or 1"); err != nil {
			return err
		}
	}
	*s = On
	if n == 0 {
		*s = Off
	}
	return nil
}

// numberSwitch is key, key=0 or key=1.
func numberSwitch(key string, field func(*Options) *Switch) spec {
	return spec{
		keys: []string{key},
		set:  func(o *Options, t token) error { return setNumberSwitch(field(o), t) },
		words: func(o *Options) []Word {
			return slices.Concat(valueIf(*field(o) == On, key, "1"), valueIf(*field(o) == Off, key, "0"))
		},
	}
}

// numberFlag is a numberSwitch whose zero is the default.
func numberFlag(key string, field func(*Options) *bool) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) error {
			var s Switch
			err := setNumberSwitch(&s, t)
			*field(o) = s == On
			return err
		},
		words: func(o *Options) []Word { return valueIf(*field(o), key, "1") },
	}
}

// pathSpec is key=PATH.
func pathSpec(key string, field func(*Options) *string) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) (err error) {
			*field(o), err = path(t)
			return err
		},
		words: func(o *Options) []Word { return valueIf(*field(o) != "", key, *field(o)) },
	}
}

// indexSpec is index=on|off|verify, or index=DIR, which is on in DIR. A mode after a directory keeps it.
func indexSpec() spec {
	const key = "index"
	modes := []string{"", "on", "off", "verify"}
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) error {
			p, err := path(t)
			switch i := slices.Index(modes, p); {
			case err != nil:
				return t.bad("needs a value", "give one of "+list(modes)+", or a directory")
			case i > 0:
				o.Index = Index(i)
			case strings.Contains(p, "/"):
				o.Index, o.IndexDir = IndexOn, p
			default:
				return t.bad("is not known", "give one of "+list(modes)+", or a directory with a slash in it")
			}
			return nil
		},
		words: func(o *Options) []Word {
			words := valueIf(o.IndexDir != "", key, o.IndexDir)
			if o.IndexDir != "" && o.Index == IndexOn {
				return words
			}
			return slices.Concat(words, valueIf(o.Index != IndexDefault, key, modes[o.Index]))
		},
	}
}

// stringSpec is key=TEXT.
func stringSpec(key string, field func(*Options) *string) spec {
	s := pathSpec(key, field)
	s.set = func(o *Options, t token) (err error) {
		*field(o), err = text(t, "")
		return err
	}
	return s
}

// idSpec is key=ID, a user or group number.
func idSpec(key string, field func(*Options) **uint32) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) error {
			n, err := number(t, 0, math.MaxUint32-1, fmt.Sprintf("give a number from 0 to %d", uint32(math.MaxUint32-1)))
			if err == nil {
				id := uint32(n)
				*field(o) = &id
			}
			return err
		},
		words: func(o *Options) []Word {
			id := *field(o)
			if id == nil {
				return nil
			}
			return valueIf(true, key, strconv.FormatUint(uint64(*id), 10))
		},
	}
}

// sizeSpec is key=NUMBER, with a suffix or without; zero is the default.
func sizeSpec(key string, field func(*Options) *int64) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) error {
			n, err := size(t)
			if err == nil {
				*field(o) = n
			}
			return err
		},
		words: func(o *Options) []Word {
			n := *field(o)
			return valueIf(n != 0, key, strconv.FormatInt(n, 10))
		},
	}
}

// idMapSpec is key=disk:mount:len[:disk:mount:len]...
func idMapSpec(key string, field func(*Options) *[]IDRange) spec {
	return spec{
		keys: []string{key},
		set: func(o *Options, t token) (err error) {
			*field(o), err = idMap(t)
			return err
		},
		words: func(o *Options) []Word {
			var triples []string
			for _, r := range *field(o) {
				triples = append(triples, r.String())
			}
			return valueIf(len(triples) > 0, key, strings.Join(triples, ":"))
		},
	}
}

// refused is an option that plyfs knows and can't honour, but for the harmless values.
func refused(key, problem, remedy string, harmless ...string) spec {
	return spec{
		keys: []string{key},
		set: func(_ *Options, t token) error {
			if slices.Contains(harmless, unescape(t.value)) {
				return nil
			}
			return t.bad(problem, remedy)
		},
	}
}

func wordIf(given bool, key string) []Word {
	if !given {
		return nil
	}
	return []Word{{Key: key}}
}

func valueIf(given bool, key, value string) []Word {
	if !given {
		return nil
	}
	return []Word{{Key: key, Value: value, HasValue: true}}
}
